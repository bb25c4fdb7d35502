"""The agent of Lading: beside a container engine it executes commands, once each, and reports what is true."""
