"""Values of an option that are one of a few."""

import click


class AsWritten(click.Choice):
    """Shown as they are written; click would show the underscores that hyphens are compared as."""

    def get_metavar(self, *args, **kwargs) -> str:
        return f"[{'|'.join(self.choices)}]"

    def convert(self, value, param, ctx):
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, self.choices))}.", param, ctx)
