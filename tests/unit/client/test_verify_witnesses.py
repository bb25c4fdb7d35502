"""Witnesses that are wanted must stand for this very tree: an older cosignature says nothing of the log's end."""

from lading.v1 import audit_log_pb2 as pb
from lading_client.verify.served_log import Result, verify_log
from tests.unit.client.made_log import MadeLog


class ObservedLog(MadeLog):
    """An agent cosigns it: a tree of the next of `steps` each time that somebody asks for the checkpoint."""

    def __init__(self, count: int, *steps: int) -> None:
        super().__init__(count)
        self.steps = list(steps)
        self.asked = 0

    def GetCheckpoint(self, request: pb.GetCheckpointRequest) -> pb.GetCheckpointResponse:
        self.asked += 1
        if self.steps:
            self.cosignatures.clear()
            self.cosign("dock-1", self.steps.pop(0), private=self.private)
        return super().GetCheckpoint(request)


def check(log: MadeLog, wanted: int, patience: float) -> Result:
    return verify_log(log.client, None, organization="acme", wanted=wanted, patience=patience)


def test_cosignature_of_a_part_does_not_stand_for_the_rest() -> None:
    log = ObservedLog(300, 299)
    result = check(log, wanted=1, patience=0)
    assert result.testimony.names == ("acme/dock-1",)
    assert result.testimony.since(300) == ()
    assert result.testimony.since(299) == ("acme/dock-1",)


def test_witness_that_is_about_to_cosign_is_waited_for() -> None:
    log = ObservedLog(300, 256, 270, 300)
    assert check(log, wanted=1, patience=20).testimony.since(300) == ("acme/dock-1",)
    assert log.asked == 3


def test_nobody_is_waited_for_who_is_not_known() -> None:
    log = ObservedLog(300, 256)
    assert check(log, wanted=2, patience=20).testimony.since(300) == ()
    assert log.asked == 1


def test_nobody_is_waited_for_unless_witnesses_are_wanted() -> None:
    log = ObservedLog(300, 256)
    assert check(log, wanted=0, patience=20).testimony.sizes == (256,)
    assert log.asked == 1
