"""Layers that several models share.

attention, feed_forward   transformer blocks' parts
norms                     of vectors, in float32
residual                  convolutional blocks of VQGAN
memory_format             the layout of maps that convolutions compute on
modulated                 convolutions modulated by a style vector
map_attention             self-attention over the cells of a map
upsampling                doubling of maps by pixel shuffle and blur
deformable_attention      sampling of feature maps at learned places
region_sampler            learned queries that read regions of feature maps
positions                 sine-cosine tables, resampling of learned positions
rotary                    rotary positions on a grid
resize                    images to a square, by several conventions
equivariance              changes of scale and orientation that a decoder shall follow
transformer               pre-norm layers of attention and SwiGLU
precision                 float32 islands and autocast
frozen                    modules that training leaves alone
"""
