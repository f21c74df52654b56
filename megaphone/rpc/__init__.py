"""The gRPC face: it translates between protobuf and the core, and has no rules of its own."""
