"""Run the networks of CloserLookFewShot on the reference inputs and keep what they return beside this file.

    git clone https://github.com/wyharveychen/CloserLookFewShot && python -m tests.official.closer_look CloserLookFewShot

Matching Networks with full-context embeddings (support class by class; the stored `support_order` says which items these
are) and the relation module, in evaluation mode and before its sigmoid (maps of a class summed, as in
floodsung/LearningToCompare_FSL; here the class would be their mean). Both have the initial weights of the registered method
with seed 0, and compute in float64 and in float32. The first four episodes of every input.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from fewshot.ops.prototypes import one_hot
from tests.conftest import SHARED
from tests.methods.agreement import prepared
from tests.official.runs import checkout_argument, describe, keep, official_module, support_order
from tests.oracle import inputs_of, load_inputs, with_support_order

EPISODES = 4
FULL_CONTEXT = {"full_context": True, "variant": "closer_look", "scale": 100.0, "relu": True}


def matching_net(program, name: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The official log probabilities [E, Q, N], and the order [E, S] in which the support was given."""
    episodes, raw = load_inputs(SHARED / "oracles", name, dtype)
    episodes = episodes[:EPISODES]
    ours, order = prepared("matching_net", FULL_CONTEXT, raw, dtype), support_order(episodes, by_shot=False)
    theirs = program.MatchingNet(lambda: SimpleNamespace(final_feat_dim=episodes.query.shape[2]), episodes.ways, 1).to(dtype)
    theirs.G_encoder.load_state_dict(ours.support_lstm.state_dict())
    theirs.FCE.lstmcell.load_state_dict(ours.query_cell.state_dict())
    theirs.FCE.c_0 = theirs.FCE.c_0.to(dtype)
    episodes, found = with_support_order(episodes, order), []
    for support, labels, query in zip(episodes.support, episodes.support_labels, episodes.query, strict=True):
        embedded = theirs.encode_training_set(support)
        found.append(theirs.get_logprobs(query, *embedded, one_hot(labels, episodes.ways, dtype)))
    return {"logprobs": torch.stack(found).numpy(), "support_order": order.numpy()}


def relation_net(program, name: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The official scores [E, Q, N]."""
    episodes, raw = load_inputs(SHARED / "oracles", name, dtype)
    episodes, shape = episodes[:EPISODES], raw["query_maps"].shape[2:]
    ours, theirs = prepared("relation_net", {}, raw, dtype), program.RelationModule(shape, 8, "softmax").to(dtype).eval()
    names = {"first": "layer1.C", "rest.0": "layer1.BN", "rest.3": "layer2.C", "rest.4": "layer2.BN", "rest.8": "fc1",
             "rest.10": "fc2"}
    for here, there in names.items():
        theirs.get_submodule(there).load_state_dict(ours.get_submodule(here).state_dict())
    classes = one_hot(episodes.support_labels, episodes.ways, dtype).transpose(1, 2) @ episodes.support  # [E, N, D]
    both = torch.broadcast_tensors(classes.unsqueeze(1), episodes.query.unsqueeze(2))
    pairs = torch.cat([x.unflatten(-1, shape) for x in both], dim=3)  # [E, Q, N, 2 C, h, w]
    return {"logits": theirs(pairs.flatten(0, 2)).view(pairs.shape[:3]).numpy()}


@torch.no_grad()
def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))  # its files import one another
    runs = {"matching_net": ("matchingnet", "full_context", "logprobs", matching_net, "paddle"),
            "relation_net": ("relationnet", "relation_module", "logits", relation_net, "dn4")}
    for method, (file, official, primary, run, same_inputs) in runs.items():
        program, notes = official_module(checkout, f"methods/{file}.py"), {}
        for name in inputs_of(SHARED / "oracles", same_inputs):
            with mock.patch.object(torch.Tensor, "cuda", lambda x: x):
                single, double = (run(program, name, dtype) for dtype in (torch.float32, torch.float64))
            keep(official, name, **single, **{f"{primary}_f64": double[primary]})
            difference = float(np.abs(double[primary] - single[primary]).max())
            notes[name] = {"tolerance_float32": max(1e-5, 20 * difference)}
        describe(official, checkout, method=method, repository="wyharveychen/CloserLookFewShot",
                 entry_point=f"methods/{file}.py", primary_output=primary, per_input=notes,
                 expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
