"""What makes a tokenizer the one a cache was made by."""

import dataclasses

from vfmtok.quantizers.cosine import CosineConfig
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.weights.hashing import model_hash, tokenizer_hash


def test_tensors_and_settings_make_the_hash(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    first = tokenizer_hash(tokenizer)
    assert first == tokenizer_hash(tiny_tokenizer())
    assert first != tokenizer_hash(tiny_tokenizer("decoder.register_position=front"))  # the same tensors
    tokenizer.quantizer.codebook.data[3, 2] += 1e-6
    assert first != tokenizer_hash(tokenizer)


def test_a_field_that_a_later_version_adds_changes_nothing(tiny_tokenizer):
    @dataclasses.dataclass(frozen=True)
    class LaterQuantizer(CosineConfig):
        new_field: int = 3

    @dataclasses.dataclass(frozen=True)
    class Later(VFMTokConfig):
        quantizer: CosineConfig = dataclasses.field(default_factory=LaterQuantizer)
        another: str | None = None

    model = tiny_tokenizer()
    earlier = model.config
    fields = {item.name: getattr(earlier, item.name) for item in dataclasses.fields(earlier)}
    same = Later(**{**fields, "quantizer": LaterQuantizer(**vars(earlier.quantizer))})
    changed = dataclasses.replace(same, quantizer=dataclasses.replace(same.quantizer, new_field=4))
    assert model_hash(model, same) == model_hash(model, earlier)
    assert model_hash(model, changed) != model_hash(model, earlier)
