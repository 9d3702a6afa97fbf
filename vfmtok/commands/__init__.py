"""One file per `vfmtok COMMAND`, with ``add_arguments(parser)`` and ``run(args)``; flags are declared here once.

data             prepare, stats, codes, import_codes with import_latents, export_codes, decode;
                 cache_check: what ends a cache
models           download, export, info (with info_on_gpus: what a training takes), import_recipe, reproduce
                 (with reproduce_inputs: what is given, checked; reproduce_verdict: what is told)
pictures         sample, reconstruct, inpaint, style, demo, curves, report;
                 pictures_of_images: what those of given images share
numbers          measure, agreement, alignment
all of them      study: every row of a table; pace: how long trainings take here
root scripts     tokenizer_flags (vq_train.py), generator_flags (train_c2i.py), evaluation_flags, measuring_networks and
                 evaluation_scripts (vqgan_test.py, test_net.py)
all              flags and sampling_flags: those that several commands have; models: what they open; parser: mistakes
                 in one line; columns: tables
"""
