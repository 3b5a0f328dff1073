from __future__ import annotations

import itertools

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import cosoc
from fewshot.methods.cosoc import Cosoc
from fewshot.methods.simple_shot import SimpleShot
from tests.methods.agreement import check_soft

# The 256 features of an item stand for four crops of 64 (tests/official/cosoc.py).
AGREEMENT = [("cosoc", {"crops": 4, "alpha": 0.9, "variant": "official"}, "cosoc")]


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0])


def crops_of(shots=3, crops=4, dim=6, kept=None, seed=0):
    """Signed features of `crops` crops each."""
    made = random_episodes(shots=shots, dim=crops * dim, seed=seed).with_features(lambda x: x - 0.4)
    kept = torch.arange(made.support.shape[1]) if kept is None else torch.tensor(kept)
    return Episodes(made.support[:, kept], made.support_labels[:, kept], made.query, 5)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def focus_of(images, alpha, official):
    """Vectors of a class from its images [k][V] of unit crops, by trying every combination."""
    left = [list(image) for image in images]
    if len(left) == 1:
        return left[0]
    rounds, vectors, weight = len(left[0]), [], 1.0
    for _ in range(rounds - 1):
        best = max(itertools.product(*(range(len(image)) for image in left)), key=lambda choice: sum(
            float(left[i][choice[i]] @ left[j][choice[j]]) for i, j in itertools.combinations(range(len(left)), 2)))
        mean = unit(torch.stack([image.pop(i) for image, i in zip(left, best, strict=True)]).mean(0))
        vectors.append(weight * mean)
        weight *= alpha
    return [*vectors, weight * (mean if official else unit(torch.stack([image[0] for image in left]).mean(0)))]


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.8), (0.7, 0.5)])
def test_against_a_loop(variant, alpha, beta):
    """One, two and three shots."""
    episodes = crops_of(kept=[0, 1, 2, 3, 4, 5, 7, 10, 12])
    found = Cosoc(crops=4, alpha=alpha, beta=beta, scale=2.0, variant=variant)(episodes)
    support, query = (unit(x.unflatten(2, (4, 6))) for x in (episodes.support, episodes.query))
    for e in range(3):
        for n in range(5):
            vectors = focus_of(support[e][episodes.support_labels[e] == n], alpha, variant == "official")
            for q, crops in enumerate(query[e]):
                cosines = {(v, w): float(vector @ crop) for v, vector in enumerate(vectors) for w, crop in enumerate(crops)}
                score = 0.0
                for number in range(4):
                    row, column = max(cosines, key=cosines.get)
                    score += beta**number * max(0.0, cosines[row, column])
                    cosines = {(v, w): c for (v, w), c in cosines.items() if v != row and w != column}
                    if number == 0 and variant == "official":
                        rows, columns = ([i for i in range(4) if i != gone] for gone in (row, column))
                        cosines = {place: cosines[place] for place in zip(rows, columns, strict=True)}
                assert abs(float(found[e, q, n]) - 2 * score) < 1e-12


def test_one_crop_is_the_nearest_class_mean():
    """The cosine to the mean of unit vectors, where it is positive; at one shot that to the image."""
    episodes = crops_of(crops=1, dim=24)
    torch.testing.assert_close(Cosoc(crops=1)(episodes), SimpleShot(norm="l2n", metric="cosine")(episodes).relu())
    single = crops_of(shots=1, crops=1, dim=24)
    torch.testing.assert_close(Cosoc(crops=1)(single), SimpleShot(norm="un", metric="cosine")(single).relu())


def test_a_shared_object_is_found():
    """One crop of every image shows the class, the others backgrounds of their own: the mean of all crops is far worse."""
    generator = torch.Generator().manual_seed(0)
    objects = unit(torch.randn(5, 32, generator=generator))

    def images(labels):
        crops = unit(torch.randn(len(labels), 5, 32, generator=generator))
        place = torch.randint(5, (len(labels),), generator=generator)
        crops[torch.arange(len(labels)), place] = unit(objects[labels] + 0.05 * torch.randn(len(labels), 32,
                                                                                            generator=generator))
        return crops

    labels, query_labels = torch.arange(5).repeat(3), torch.arange(5).repeat(20)
    support, query = images(labels), images(query_labels)
    right = [(method(Episodes(s[None], labels[None], q[None], 5))[0].argmax(-1) == query_labels).double().mean()
             for method, s, q in ((Cosoc(crops=5), support.flatten(1), query.flatten(1)),
                                  (SimpleShot(norm="l2n"), support.mean(1), query.mean(1)))]
    assert right[0] > 0.98 and right[1] < 0.9


def test_many_shots_take_a_centre(monkeypatch):
    """Beyond the limit the choice is one of the nearest crops to a centre, and nearly as good."""
    images = unit(crops_of(shots=5, crops=3, dim=8).support.unflatten(2, (3, 8))).unflatten(1, (5, 5)).transpose(1, 2)

    def value(choice):
        return cosoc._taken(images, choice).sum(2).square().sum(-1)

    exact = value(cosoc._closest(images))
    monkeypatch.setattr(cosoc, "_CHOICES", 3)
    centred = value(cosoc._closest(images))
    random = value(torch.zeros(images.shape[:3], dtype=torch.int64))
    assert (centred <= exact + 1e-12).all() and (exact - centred).mean() < 0.1 * (exact - random).mean()
    assert Cosoc(crops=7)(crops_of(shots=10, crops=7)).isfinite().all()


def test_the_order_of_crops_and_their_lengths_do_not_matter():
    episodes = crops_of()
    order = torch.tensor([2, 0, 3, 1])
    found = Cosoc(crops=4)(episodes)
    other = episodes.with_features(lambda x: (x.unflatten(2, (4, 6))[:, :, order] * torch.tensor([1.0, 2, 5, 0.1])
                                              .double()[:, None]).flatten(2))
    torch.testing.assert_close(Cosoc(crops=4)(other), found, atol=1e-12, rtol=0)


def test_wrong_values():
    for options, message in (({"crops": 0}, "crops=0"), ({"alpha": 0.0}, "alpha=0.0"), ({"beta": -1.0}, "beta=-1.0"),
                             ({"variant": "sane"}, "choose one of paper, official")):
        with pytest.raises(FewshotError, match=message):
            Cosoc(**options)
    with pytest.raises(FewshotError, match=r"length 16 are not those of crops=7; embed with crops='keep\(7\)'"):
        Cosoc()(random_episodes())
