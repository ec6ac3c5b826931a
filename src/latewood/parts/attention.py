"""What the linear layers of attention are called, in the library transformers and in the nets here."""

#: The projections to queries, keys and values.
QUERY_KEY_VALUE = ("query", "key", "value", "q_proj", "k_proj", "v_proj")
#: A pattern for the projection of what all heads found together.
OUTPUT = r"(\bo_proj|out_proj|attention\.output\.dense|attn\.proj)$"
