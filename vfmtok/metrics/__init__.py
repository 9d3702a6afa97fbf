"""Pure numbers: each takes tensors and gives a value with its meaning; nothing here knows a model or a file.

frechet            FID, sFID, FD: the distance of two Gaussians
inception_score    IS
kernel_distance    KID
precision_recall   improved precision and recall
pixels             PSNR and SSIM of images as they come
psnr_and_usage     the formulas of PSNR and of codebook usage
usage              codebook usage and perplexity over all ranks
probe              a linear classifier on features
feature_bank       features as they come, over all ranks
"""
