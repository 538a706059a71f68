"""The HTML of a heat map as its tokens and tags."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Text, tags that stand open, and the tokens of each row with their attributes."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.rows, self.text, self.figures = [], [], [], "", 0
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if ("class", "tokens") in attributes:
            self.rows.append([])
        if ("role", "cell") in attributes:
            self.rows[-1].append({**dict(attributes), "text": ""})
        if tag == "figure":
            self.figures += 1
        if tag not in {"br", "img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-2:] == ["div", "span"]:
            self.rows[-1][-1]["text"] += data
