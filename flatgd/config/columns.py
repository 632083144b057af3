"""The keys of a row that are understood, in any of the published forms."""

TURNS = ("messages", "conversations", "turns")
PAIR = ("chosen", "rejected")
REPLIES = ("completion", *PAIR)
ABOUT = (
    "system",
    "tools",
    "parallel_tool_calls",
    "prompt_id",
    "id",
    "score_chosen",
    "score_rejected",
)
"""Keys of published forms beside the conversation. `system` and `tools` are read, the rest not."""
COMMON = ("label", "conversation", "speaker", "source")
KEYS = (*TURNS, "prompt", *REPLIES, *COMMON, *ABOUT)
