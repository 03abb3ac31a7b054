"""What mkdocs does to a page: links to files of the repository that are no pages lead to the repository."""

import re

OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_page_markdown(markdown, config, **_):
    return OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1", markdown)
