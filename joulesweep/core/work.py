"""Units in which the work of a training is counted, and the names of the counts in a record.

Standard library only: the training and the analysis share it.
"""

#: Units of the matrix products, each with its count of useful and of computed units.
#: token: a position of the encoder, or of the only stack of layers; target_token: a position of the decoder of an
#: encoder-decoder; head_position: a position at which the output layer is computed; token_pair, target_pair,
#: cross_pair: a pair of positions of one row, within the encoder, within the decoder, and across.
UNITS = {
    "token": ("num_tokens", "num_padded_tokens"),
    "head_position": ("num_predicted", "num_head_positions"),
    "token_pair": ("num_token_pairs", "num_padded_token_pairs"),
    "target_token": ("num_target_tokens", "num_padded_target_tokens"),
    "target_pair": ("num_target_pairs", "num_padded_target_pairs"),
    "cross_pair": ("num_cross_pairs", "num_padded_cross_pairs"),
}
USEFUL, COMPUTED = 0, 1  # which of a unit's two counts
#: Names of everything that a batch counts.
COUNTED = ("num_texts", *(name for counts in UNITS.values() for name in counts))
