"""Training: recipes, the visible loops, and what keeps a long run safe and observable.

tokenizer      train_tokenizer (the loop), tokenizer_run (what it works with), recipe, flags, objective, codebook_care,
               validation
generator      train_gpt (the loop), gpt_run, gpt_recipe, gpt_flags, token_source, token_validation
both           passes, optimizer, ema, sharding; state (all of a run), checkpoint, run_folder; health, run_log,
               interruption
commands       sample (and the models that others open by its flags), export, curves
"""
