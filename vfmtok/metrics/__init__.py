"""Pure numbers: each takes tensors and gives a value with its meaning; nothing here knows a model or a file.

frechet            FID, sFID, FD: the distance of two Gaussians
inception_score    IS
kernel_distance    KID
precision_recall   improved precision and recall
pixels             PSNR, SSIM and LPIPS of images and their reconstructions
usage              codebook usage and perplexity
neighbour_alignment CKNNA: how alike neighbourhoods are in the features of two models
probe              a linear classifier on features
feature_bank       features as they come, over all ranks
"""
