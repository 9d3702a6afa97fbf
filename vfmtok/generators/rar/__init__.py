"""RAR (arXiv 2411.00776): autoregression in permuted orders that is annealed to the raster order.

config    what can be set, and the named sizes
model     the transformer, its loss; orders: which permutation a sample trains on
released  names of the tensors in published files
"""
