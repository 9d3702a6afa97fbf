"""RAR (arXiv 2411.00776): autoregression in permuted orders that is annealed to the raster order.

config    what can be set, and the named sizes
model     the transformer, its loss
released  names of the tensors in published files
"""
