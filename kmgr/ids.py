"""The kinds of names that things have, so that one cannot be passed for another."""

from typing import NewType

ServerId = NewType("ServerId", str)
ImageId = NewType("ImageId", str)
VersionId = NewType("VersionId", str)
TemplateId = NewType("TemplateId", str)
DesktopId = NewType("DesktopId", str)
CommandId = NewType("CommandId", str)
AccountName = NewType("AccountName", str)
