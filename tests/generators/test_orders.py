"""Tokens in any order: what holds for every generator that learns it, and who refuses."""

import pytest
import torch

import vfmtok
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.orders import Annealing, training_orders

LABELS = torch.tensor([1, 0, 2, 3])
SIZES = {"dim": 32, "n_layer": 2, "n_head": 2, "ffn_hidden": 64, "vocab_size": 24, "num_tokens": 9, "num_classes": 4}
FREE_FORM = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 0, 1]]).bool()


def random_weights(generator):
    """Everywhere, in heads and modulations too, so that every part matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return generator.eval()


@pytest.fixture(scope="module", params=["rar", "permuted gpt"])
def generator(request):
    if request.param == "rar":
        return random_weights(vfmtok.RAR(vfmtok.rar_config("RAR-B", **SIZES)))
    return random_weights(vfmtok.GPT(vfmtok.gpt_config("GPT-B", permuted=True, **SIZES)))


@pytest.fixture(scope="module")
def gpt():
    return random_weights(vfmtok.GPT(vfmtok.gpt_config("GPT-B", **SIZES)))


def logits_in_order(generator, ids, order):
    """(B,K,V), row k of the k-th token of the order, of a pass over whole sequences."""
    if isinstance(generator, vfmtok.RAR):
        return generator(LABELS, ids, order).logits
    return generator(LABELS, ids.gather(1, order)[:, :-1], order=order).logits


@pytest.mark.parametrize("given", [0, 3])
def test_cached_decoding_in_an_order_is_the_whole_pass(generator, given):
    torch.manual_seed(1)
    ids, order = torch.randint(24, (4, 9)), torch.rand(4, 9).argsort(1)
    drawn, before = ids.gather(1, order), generator.first_token_slot
    with torch.no_grad():
        whole = logits_in_order(generator, ids, order)
        state, logits = generator.begin(LABELS, drawn[:, :given], order)
        found = [logits]
        for token in range(given, 8):
            state.reserve(before + token + 1)
            found.append(generator.decode_step(drawn[:, token], torch.tensor([before + token]), state))
    torch.testing.assert_close(torch.stack(found, 1), whole[:, given:], rtol=1e-5, atol=1e-5)


def test_no_token_sees_a_later_one_or_misses_its_own_position(generator):
    """A token changed in the k-th place leaves the logits up to k as they are; another target changes them."""
    torch.manual_seed(1)
    ids, order = torch.randint(24, (4, 9)), torch.rand(4, 9).argsort(1)
    with torch.no_grad():
        whole = logits_in_order(generator, ids, order)
        changed = logits_in_order(
            generator, ids.scatter(1, order[:, 4:5], (ids.gather(1, order[:, 4:5]) + 1) % 24), order
        )
        swapped = order.clone()
        swapped[:, [3, 8]] = order[:, [8, 3]]
        elsewhere = logits_in_order(generator, ids, swapped)
    assert torch.equal(whole[:, :5], changed[:, :5]) and not torch.equal(whole[:, 5], changed[:, 5])
    assert torch.equal(whole[:, :3], elsewhere[:, :3]) and not torch.equal(whole[:, 3], elsewhere[:, 3])


def test_raster_is_the_order_that_is_not_given(generator):
    raster = torch.arange(9).expand(4, 9)
    assert torch.equal(vfmtok.generate(generator, LABELS, order=raster), vfmtok.generate(generator, LABELS))
    with pytest.raises(vfmtok.ConfigError, match="permutations"):
        vfmtok.generate(generator, LABELS, order=torch.zeros(4, 9, dtype=torch.int64))


def test_inpainting_with_a_free_form_mask(generator):
    """Known tokens come back where they were; the others are what the same order gives by hand."""
    torch.manual_seed(2)
    ids = torch.randint(24, (4, 9))
    found = vfmtok.generate(generator, LABELS, known=(ids.where(FREE_FORM, -1), FREE_FORM[0]), seed=3, cfg_scale=2.0)
    assert torch.equal(found[:, FREE_FORM[0]], ids[:, FREE_FORM[0]])
    order = torch.tensor([1, 2, 5, 8, 0, 3, 4, 6, 7]).expand(4, 9)
    by_hand = vfmtok.generate(generator, LABELS, prefix_ids=ids[:, order[0, :4]], order=order, seed=3, cfg_scale=2.0)
    assert torch.equal(found, by_hand)
    assert (found != ids).any()
    everything = vfmtok.generate(generator, LABELS, known=(ids, torch.ones(9, dtype=torch.bool)))
    assert torch.equal(everything, ids)
    nothing = vfmtok.generate(generator, LABELS, known=(ids, torch.zeros(9, dtype=torch.bool)))
    assert torch.equal(nothing, vfmtok.generate(generator, LABELS))


def test_images_of_a_batch_may_have_masks_of_their_own(generator):
    """Of other sizes too: every row is what it is alone."""
    torch.manual_seed(4)
    ids, masks = torch.randint(24, (4, 9)), torch.rand(4, 9) < torch.tensor([0.1, 0.4, 0.6, 0.9])[:, None]
    assert len(set(masks.sum(1).tolist())) > 2
    settings = {"cfg_scale": 3.0, "cfg_schedule": "power-cosine", "cfg_power": 1.5, "cfg_interval": 3, "seed": 7}
    whole = vfmtok.generate(generator, LABELS, known=(ids, masks), **settings)
    for row in range(4):
        known, index = (ids[row : row + 1], masks[row]), torch.tensor([row])
        alone = vfmtok.generate(generator, LABELS[row : row + 1], known=known, sample_indices=index, **settings)
        assert torch.equal(alone[0], whole[row])


def test_a_gpt_takes_the_first_tokens_only(gpt):
    torch.manual_seed(5)
    ids, counts = torch.randint(24, (4, 9)), torch.tensor([0, 2, 5, 9])
    masks = torch.arange(9) < counts[:, None]
    found = vfmtok.generate(gpt, LABELS, known=(ids, masks), seed=1)
    assert torch.equal(found[masks], ids[masks])
    alone = vfmtok.generate(gpt, LABELS[2:3], prefix_ids=ids[2:3, :5], seed=1, sample_indices=torch.tensor([2]))
    assert torch.equal(found[2:3], alone)
    with pytest.raises(vfmtok.ConfigError, match="an image's first ones"):
        vfmtok.generate(gpt, LABELS, known=(ids, FREE_FORM[0]))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ((torch.zeros(4, 8, dtype=torch.int64), FREE_FORM[0]), r"known must be ids \(4,9\)"),
        ((torch.zeros(4, 9, dtype=torch.int64), FREE_FORM[0].long()), "bool"),
        ((torch.full((4, 9), 24), FREE_FORM[0]), r"known ids must be in \[0,24\)"),
    ],
)
def test_known_tokens_that_cannot_be(generator, known, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        vfmtok.generate(generator, LABELS, known=known)


def test_what_learns_one_order_is_given_no_other(gpt):
    with pytest.raises(vfmtok.ConfigError, match="row by row only"):
        vfmtok.generate(gpt, LABELS, order=torch.arange(9).expand(4, 9))
    ids, order = torch.zeros(4, 9, dtype=torch.int64), torch.rand(4, 9).argsort(1)
    with pytest.raises(ValueError, match="raster order only"):
        gpt(LABELS, ids[:, :-1], order=order)
    with pytest.raises(ValueError, match="raster order only"):
        gpt.begin(LABELS, ids[:, :0], order)


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def test_orders_are_functions_of_seed_and_sample():
    code, samples = torch.zeros(64, 9, dtype=torch.int64), torch.arange(64)
    order = training_orders(code, Draws(5, samples), 0.5)
    for part in samples.split(16):
        assert torch.equal(training_orders(code[part], Draws(5, part), 0.5), order[part])
    assert torch.equal(order.sort(1).values, torch.arange(9).expand(64, 9))
    raster = (order == torch.arange(9)).all(1)
    assert 16 < raster.sum() < 48  # half of 64, within 4 standard deviations
    assert (training_orders(code, Draws(5, samples), 0.0) == torch.arange(9)).all()
    assert not (training_orders(code, Draws(5, samples), 1.0) == torch.arange(9)).all(1).any()
    assert (training_orders(code, Draws(6, samples), 1.0) != training_orders(code, Draws(5, samples), 1.0)).any()


def test_the_share_of_random_orders_follows_the_run():
    relative = Annealing(None, None)
    assert [relative.random_share(step, 8) for step in range(8)] == [1, 1, 1, 1, 1, 0.5, 0, 0]
    assert relative.random_share(10**9) == 1.0  # no run, no end
    published = Annealing(125_000, 187_500)
    steps = (0, 124_999, 125_000, 156_250, 187_499, 187_500, 249_999)
    assert [published.random_share(step) for step in steps] == [relative.random_share(s, 250_000) for s in steps]
    assert Annealing(3, 3).random_share(2) == 1 and Annealing(3, 3).random_share(3) == 0


def test_a_run_too_short_for_its_annealing_is_refused(generator):
    published = vfmtok.RAR(vfmtok.rar_config("RAR-B", **SIZES))
    with pytest.raises(vfmtok.ConfigError, match="anneal_end 187500 lies beyond the run's 1000 steps"):
        published.begin_run(1000)
    published.begin_run(250_000)
    with pytest.raises(vfmtok.ConfigError, match="must not be before anneal_start"):
        vfmtok.gpt_config("GPT-B", permuted=True, anneal_start=5, anneal_end=4)
    with pytest.raises(vfmtok.ConfigError, match="anneal_end must be null where anneal_start is"):
        vfmtok.rar_config("RAR-B", anneal_start=None)
    with pytest.raises(vfmtok.ConfigError, match="belongs to permuted"):
        vfmtok.gpt_config("GPT-B", anneal_start=5, anneal_end=9)


def test_the_permuted_loss_is_that_of_the_order(generator):
    """Of the logits of the whole pass, with dropout off."""
    torch.manual_seed(3)
    ids, draws, config = (
        torch.randint(24, (4, 9)),
        Draws(0, torch.arange(4)),
        {"dropout_p": 0.0, "label_dropout_p": 0.0},
    )
    if isinstance(generator, vfmtok.RAR):
        still = vfmtok.RAR(vfmtok.rar_config("RAR-B", **SIZES, **config, attention_dropout_p=0.0))
    else:
        still = vfmtok.GPT(vfmtok.gpt_config("GPT-B", permuted=True, **SIZES, **config, token_dropout_p=0.0))
    still.load_state_dict(generator.state_dict())
    still.train()
    order = training_orders(ids, draws, 1.0)
    losses = []
    for chosen in (order, torch.arange(9).expand(4, 9)):
        logits = logits_in_order(generator, ids, chosen).double()
        losses.append(-logits.log_softmax(-1).gather(2, ids.gather(1, chosen)[..., None]).mean().item())
    for step, expected in ((0, losses[0]), (200_000, losses[1])):
        still.step, still.run_steps = step, 200_001
        assert still.loss(ids, LABELS, draws)["token"].item() == pytest.approx(expected, rel=1e-5)


def test_a_code_of_several_segments_is_refused():
    hita = vfmtok.Ids((vfmtok.Segment(4, 24), vfmtok.Segment(9, 24, (3, 3))))
    with pytest.raises(vfmtok.ConfigError, match="one table of ids"):
        vfmtok.RARConfig.fields_of_code(hita)
    with pytest.raises(vfmtok.ConfigError, match="permuted needs num_holistic 0"):
        vfmtok.gpt_config("GPT-B", permuted=True, num_holistic=4)
