"""What the linear layers of attention are called, in the library transformers and in the nets here."""

#: The projections to queries, keys and values.
QUERY_KEY_VALUE = ("query", "key", "value", "q_proj", "k_proj", "v_proj")
