"""Names that stand for models in recipes, files and tables."""

BACKBONE = "backbone"
EXPERTS = ("clean_expert", "toxic_expert")
REFERENCE = "reference"  # people's own replies
RESERVED = {BACKBONE, REFERENCE, "experts", *EXPERTS}
MAJORITY = "majority"  # the vote of several judges
