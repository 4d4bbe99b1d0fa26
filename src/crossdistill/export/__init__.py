"""A trained student in the formats that other software loads, each checked by loading it back."""

from crossdistill.export.timm_folder import export_student

__all__ = ["export_student"]
