"""What every configuration section shares."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings. An unknown key or a value of the wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
