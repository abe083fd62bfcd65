//! gRPC over unix sockets and the one map from error kinds to gRPC codes.
