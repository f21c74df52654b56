"""Between bytes and the model: the one place that knows JSON, protobuf and the codes of errors."""
