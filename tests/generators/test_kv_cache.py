"""The cache keeps what is written while its reach grows, in memory that is allocated once."""

import torch

from vfmtok.generators.kv_cache import BLOCK, KVCache

LAYERS, BATCH, HEADS, SLOTS, WIDTH = 2, 4, 3, 2 * BLOCK + 5, 8


def test_slots_survive_growth_in_dense_static_memory():
    cache = KVCache(LAYERS, BATCH, HEADS, SLOTS, WIDTH, torch.empty(0).fill_(torch.nan))
    memory = [tensor for pair in cache._memory for tensor in pair]
    assert all(tensor.numel() == BATCH * HEADS * SLOTS * WIDTH for tensor in memory)
    for tensor in memory:
        tensor.fill_(torch.nan)  # what fresh memory may hold
    written = torch.randn(LAYERS, 2, BATCH, SLOTS, HEADS, WIDTH)
    for slot in range(SLOTS):
        cache.reserve(slot + 1)
        for layer, (keys, values) in zip(cache.layers, written, strict=True):
            layer.write(torch.tensor([slot]), keys[:, slot : slot + 1], values[:, slot : slot + 1])
            for found, expected, home in ((layer.keys, keys, 0), (layer.values, values, 1)):
                assert found.is_contiguous()
                assert torch.equal(found[:, :, : slot + 1], expected[:, : slot + 1].transpose(1, 2)), home
                assert not found[:, :, slot + 1 :].any()
        mask = cache.mask(torch.tensor([slot]))
        assert (mask == 0).tolist() == [index <= slot for index in range(cache.reach)]
    assert cache.reach == SLOTS
    homes = {tensor.data_ptr() for tensor in memory}
    assert {tensor.data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values)} == homes


def test_first_samples_share_the_memory():
    cache = KVCache(LAYERS, BATCH, HEADS, SLOTS, WIDTH, torch.empty(0))
    cache.reserve(BLOCK)
    keys, values = torch.randn(2, BATCH, BLOCK, HEADS, WIDTH)
    cache.layers[1].write(torch.arange(BLOCK), keys, values)
    part = cache.first(2)
    assert part.layers[1].keys.data_ptr() == cache.layers[1].keys.data_ptr()
    part.reserve(BLOCK + 1)
    assert torch.equal(part.layers[1].keys[:, :, :BLOCK], keys[:2].transpose(1, 2))
    assert torch.equal(part.layers[1].values[:, :, :BLOCK], values[:2].transpose(1, 2))
