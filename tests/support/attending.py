"""What ``attend_varlen`` must compute, one text after the other, in steps that anybody can check."""

from itertools import pairwise

import torch


def attend_one_by_one(query, key, value, rule, bounds):
    """Signature and shapes of ``attend_varlen``; tokens behind the last text get NaN, so that nobody reads them."""
    attended = torch.full_like(query.transpose(1, 2), torch.nan)
    repeated = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    starts = bounds.starts.tolist()
    seen = [end - start for start, end in pairwise(starts)]
    if bounds.seen is not None:
        seen = bounds.seen.tolist()
    for (start, end), count in zip(pairwise(starts), seen, strict=True):
        if start == end:
            continue
        own = [tensor[0, :, start:end].double() for tensor in (query, key, value)]
        queries, keys, values = own[0], *(tensor.repeat_interleave(repeated, dim=0) for tensor in own[1:])
        places = torch.arange(end - start, device=query.device)
        distance = places[:, None] - places
        hidden = (places >= count).expand_as(distance)
        if rule.causal:
            hidden = hidden | (distance < 0)
        if rule.window is not None:
            hidden = hidden | (distance.abs() >= rule.window)
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        attended[0, start:end] = (scores.softmax(-1) @ values).transpose(0, 1).to(query.dtype)
    return attended
