"""What a training's work is counted in, and where its counts stand in a record.

Standard library only: the training and the analysis share it.
"""

#: Units of the matrix products: each with the count of those that are useful, and of those that are computed.
#: A position of the encoder or of the only stack of layers; a position of a decoder beside an encoder; a position at
#: which the output layer is computed; a pair of positions of one row, within the one, the other, and across.
UNITS = {
    "token": ("num_tokens", "num_padded_tokens"),
    "head_position": ("num_predicted", "num_head_positions"),
    "token_pair": ("num_token_pairs", "num_padded_token_pairs"),
    "target_token": ("num_target_tokens", "num_padded_target_tokens"),
    "target_pair": ("num_target_pairs", "num_padded_target_pairs"),
    "cross_pair": ("num_cross_pairs", "num_padded_cross_pairs"),
}
USEFUL, COMPUTED = 0, 1  # which of a unit's two counts
#: What a batch counts.
COUNTED = ("num_texts", *(name for counts in UNITS.values() for name in counts))
