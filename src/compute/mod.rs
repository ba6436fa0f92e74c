//! What a stage does: ranks, models, data, training, checkpoints, evaluation, attacks.
