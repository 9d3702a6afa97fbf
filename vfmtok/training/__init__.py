"""Training: recipes, the visible loops, and what keeps a long run safe and observable.

tokenizer      train_tokenizer (the loop), tokenizer_run (what it works with), recipe, loss_recipe, objective,
               adversaries, equivariance, tokenizer_passes, codebook_care, validation
generator      train_generator (the loop), generator_run, generator_recipe, code_source, chosen_codes (of validation and
               of statistics), code_validation
both           construction (optimizers, average), first_weights, trained_parts (stages), schedule, passes, optimizer,
               muon, ema, sharding; progress (what follows a step); state (all of a run), run_folder, saving; health,
               run_log, interruption
"""
