"""The Open Inference Protocol, version 2, over HTTP and gRPC, with the extensions of Triton's."""
