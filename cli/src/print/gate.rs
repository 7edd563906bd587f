//! What `palisade gate` prints.
