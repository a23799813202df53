"""The domain: frames, codec, kernels.

Pure: no broker, runtime, HTTP, database, clock or randomness is imported here."""
