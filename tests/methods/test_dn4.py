from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.features.extract import embed_episodes
from fewshot.methods import create_method
from fewshot.methods.dn4 import Dn4
from fewshot.ops import chunked
from fewshot.ops.distances import cosine
from tests.methods.agreement import check_soft
from tests.methods.metric_learning import fit_four_episodes, image_bank_episodes
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("dn4", {}, "dn4")]
C, POSITIONS = 4, 6


def maps(shots: int = 2, seed: int = 0, **options) -> Episodes:
    """Signed features of 4 channels and 6 positions."""
    return random_episodes(shots=shots, dim=C * POSITIONS, seed=seed, **options).with_features(lambda x: x - 0.4)


def without_ties(episodes: Episodes) -> Episodes:
    """Where ReLU has left a descriptor nothing it equals others, and the gradient of the largest cosine has no one place."""
    generator = torch.Generator().manual_seed(2)
    return episodes.with_features(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


def changed(episodes: Episodes, **fields) -> Episodes:
    before = {"support": episodes.support, "support_labels": episodes.support_labels, "query": episodes.query}
    return Episodes(**{**before, **fields}, ways=episodes.ways)


def by_position(x: torch.Tensor, function) -> torch.Tensor:
    """`function` of [E, B, C, positions], flattened again."""
    return function(x.unflatten(-1, (C, POSITIONS))).flatten(-2)


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0])


def test_agrees_with_official_code_for_one_neighbour(oracles):
    for inputs in inputs_of(oracles, "dn4"):
        outputs, _ = load_outputs(oracles, "dn4", inputs)
        found = Dn4(neighbours=1)(load_inputs(oracles, inputs)[0])
        np.testing.assert_allclose(found, outputs["scores_k1_f64"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("neighbours", [1, 3, 6])
def test_against_a_loop(neighbours):
    """Unequal shots, classes in any order."""
    full = maps(shots=3)
    kept = torch.tensor([12, 0, 1, 7, 5, 2, 3, 4, 10])
    episodes = changed(full, support=full.support[:, kept], support_labels=full.support_labels[:, kept])
    assert episodes.support_labels[0].bincount().tolist() == [3, 1, 3, 1, 1]
    found = Dn4(C, neighbours)(episodes)
    for e in range(3):
        for q in range(15):
            for n in range(5):
                score = 0.0
                pool = [s.view(C, POSITIONS)[:, p] for s, label in
                        zip(episodes.support[e], episodes.support_labels[e], strict=True) if label == n
                        for p in range(POSITIONS)]
                for p in range(POSITIONS):
                    z = episodes.query[e, q].view(C, POSITIONS)[:, p]
                    cosines = sorted((float(z @ s / (z.norm() * s.norm())) for s in pool), reverse=True)
                    score += sum(cosines[:neighbours])
                assert abs(found[e, q, n].item() - score) < 1e-12


def test_positions_and_shots_do_not_matter():
    episodes = maps(shots=3)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    scores = Dn4(C)(episodes)
    for part in ("support", "query"):
        moved = changed(episodes, **{part: by_position(getattr(episodes, part), lambda x: x[..., order])})
        torch.testing.assert_close(Dn4(C)(moved), scores, atol=1e-12, rtol=0)
    # A descriptor is exchanged with one of another shot of its class.
    shots = episodes.support.view(3, 3, 5, C, POSITIONS).clone()
    shots[:, [0, 2], :, :, 1] = shots[:, [2, 0], :, :, 1]
    torch.testing.assert_close(Dn4(C)(changed(episodes, support=shots.view(3, 15, -1))), scores, atol=1e-12, rtol=0)
    # Channels are no positions: exchanging some on one side only does matter.
    other = changed(episodes, query=by_position(episodes.query, lambda x: x.flip(-2)))
    assert (Dn4(C)(other) - scores).abs().max() > 0.1


def test_scale_of_a_descriptor_does_not_matter():
    episodes = maps()
    factors = torch.rand(3, 15, 1, POSITIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 9 + 0.1
    scaled = changed(episodes, query=by_position(episodes.query, lambda x: x * factors),
                     support=by_position(episodes.support, lambda x: x * factors[:, :10]))
    torch.testing.assert_close(Dn4(C)(scaled), Dn4(C)(episodes), atol=1e-12, rtol=0)


def test_all_neighbours_are_the_sum_of_all_cosines():
    episodes = maps(shots=2)
    query, support = (x.unflatten(-1, (C, POSITIONS)).transpose(-1, -2).flatten(1, 2)
                      for x in (episodes.query, episodes.support))
    sums = cosine(query, support).view(3, 15, POSITIONS, 2, 5, POSITIONS).sum((2, 3, 5))
    torch.testing.assert_close(Dn4(C, neighbours=2 * POSITIONS)(episodes), sums, atol=1e-12, rtol=0)


def test_blocks_do_not_matter(monkeypatch):
    """Neither blocks of queries nor blocks of episodes change the scores or their gradients."""
    episodes, found = without_ties(maps(shots=3)), []
    of_a_query = POSITIONS * 5 * 3 * POSITIONS
    for limit in (1 << 23, 15 * of_a_query, 4 * of_a_query, 1):
        monkeypatch.setattr(chunked, "_ELEMENTS", limit)
        support, query = episodes.support.clone().requires_grad_(), episodes.query.clone().requires_grad_()
        scores = Dn4(C)(changed(episodes, support=support, query=query))
        scores.log_softmax(-1)[..., 0].sum().backward()
        found.append((scores.detach(), support.grad, query.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-12, rtol=0)


def test_gradients():
    episodes = without_ties(maps(shots=2, episodes=1, queries=3, ways=3))

    def scores(support, query):
        return Dn4(C)(changed(episodes, support=support, query=query))

    assert torch.autograd.gradcheck(scores, (episodes.support.requires_grad_(), episodes.query.requires_grad_()))


def test_conv4_flattens_channels_first():
    """The descriptors are those of the backbone's map, whatever the memory layout of its activations."""
    backbone = create_backbone("conv4", channels=1, image_size=28, pools=2, width=8)
    images, _ = image_bank_episodes()
    with torch.no_grad():
        features = embed_episodes(images, backbone)
        support, query = (backbone.forward_map(backbone.transform(x[0])) for x in (images.support, images.query))
        scores = Dn4(8, neighbours=1)(features)[0]
        first, other = (torch.nn.functional.normalize(x.flatten(2), dim=1) for x in (query, support))
        expected = torch.einsum("qcx,scy->qsxy", first, other).amax(3).sum(2)  # one shot: an item is a class
    torch.testing.assert_close(scores[:, images.support_labels[0]], expected, atol=1e-3, rtol=0)


def test_four_episodes_are_fitted():
    losses, right = fit_four_episodes(create_method("dn4", channels=16))
    assert losses[0] > 0.2 and losses[-1] < 0.02 and right


def test_mistakes_are_named():
    with pytest.raises(FewshotError, match="length 24 are no maps of channels=64"):
        Dn4()(maps())
    with pytest.raises(FewshotError, match=r"neighbours=7, but a class has 6 descriptors \(shots times 6 positions\)"):
        Dn4(C, neighbours=7)(maps(shots=1))
    for name in ("channels", "neighbours"):
        with pytest.raises(FewshotError, match=f"{name}=0"):
            Dn4(**{name: 0})
