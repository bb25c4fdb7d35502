"""The agent of Lading: beside a container engine it executes commands, once each, and reports what is true."""

import os

# The agent's stderr is its log, one line an event: gRPC reads this once, when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
