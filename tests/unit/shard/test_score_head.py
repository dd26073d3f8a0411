from types import SimpleNamespace

from shard.encoders.score_head import ScoreHead


def test_labels_hold_no_half_of_a_surrogate_pair_which_could_be_sent_to_nobody():
    model = SimpleNamespace(config=SimpleNamespace(id2label={"1": "是", "0": "no\ud800"}))
    assert ScoreHead(model, "classify").facts.labels == ("no?", "是")
