"""How unlike the features of a frozen encoder a tokenizer's latents are: VA-VAE's VF loss (Yao et al., 2025).

Shapes: B batch, D channels, h and w sides of the latents, H and W of the features, N = h*w positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.layers.precision import at_least_float32


def alignment_loss(
    projected: Tensor,
    features: Tensor,
    *,
    similarity_margin: float = 0.0,
    cosine_margin: float = 0.0,
    similarity_weight: float = 1.0,
    cosine_weight: float = 1.0,
) -> Tensor:
    """Latents projected to the features' width (B,D,h,w), and features (B,D,H,W), which get no gradient -> float32.

    The features are averaged over cells to the latents' grid. Then
    similarity_weight * mean over pairs of positions i, j of an image
        of relu(|cos(latent_i, latent_j) - cos(feature_i, feature_j)| - similarity_margin)
    + cosine_weight * mean over positions of relu(1 - cosine_margin - cos(latent_i, feature_i)).
    """
    with torch.autocast(projected.device.type, enabled=False):
        features = F.adaptive_avg_pool2d(at_least_float32(features.detach()), projected.shape[-2:])  # (B,D,h,w)
        latents, features = (
            F.normalize(at_least_float32(maps).flatten(2), dim=1) for maps in (projected, features)
        )  # (B,D,N)
        within = [maps.transpose(1, 2) @ maps for maps in (latents, features)]  # (B,N,N) both
        unlike = F.relu((within[0] - within[1]).abs() - similarity_margin).mean()
        apart = F.relu(1 - cosine_margin - (latents * features).sum(dim=1)).mean()
        return similarity_weight * unlike + cosine_weight * apart
