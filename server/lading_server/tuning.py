"""What makes a process that serves cheaper to run, and nothing else of it different."""

import gc
import os

import grpc.aio

COLLECT_FROM = 20_000
"""So many more objects than at the last look have the collector look again: some megabytes."""


def tune_polling() -> None:
    """Before anything of gRPC is begun: its thread that hands on what comes does not interrupt the event loop whenever
    something does, but has its turn when the loop has nothing to do or has had its share. On one core, under load, that
    is one switch between the two in place of several a command. Where others than Linux run, nothing changes."""
    usual = hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER
    if usual:  # else somebody has chosen another policy for this process
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # threads begin with the policy of who begins them
    try:
        grpc.aio.init_grpc_aio()
    finally:
        if usual:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def tune_collector() -> None:
    """Once everything is begun: what is there now stays, and calls and frames, which are freed without the collector,
    do not have it look through all sessions again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_FROM, 10, 10)
