"""What a training will take, before anybody starts it: `vfmtok info RECIPE --on h100x8`.

machines       the GPUs (a table, with prices) and how many
operations     every operation of a pass, counted on fake tensors; what it keeps for the backward pass
training_pass  the passes of a recipe: what is carried out and counted
memory         of one process, on its GPU and on its host
prediction     the arithmetic: step time, days, cost; whether it fits, and what to change if not
"""
