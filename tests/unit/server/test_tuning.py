"""That gRPC takes what a process that serves asks of it."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, json, os, threading
from lading_server.tuning import tune_polling

async def main():
    tune_polling()
    print(json.dumps({thread.name: os.sched_getscheduler(thread.native_id) for thread in threading.enumerate()}))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux knows this policy")
def test_thread_of_grpc_does_not_interrupt_the_loop() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    policies = json.loads(done.stdout)
    assert policies.pop("MainThread") == os.SCHED_OTHER
    assert list(policies.values()) == [os.SCHED_BATCH], policies
