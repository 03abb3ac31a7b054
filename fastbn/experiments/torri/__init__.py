"""Torri's study of BatchNorm alone beyond convolutions: an MLP, an LSTM, tweets and word vectors."""
