"""A project of one's own, outside the repository: two functions, three topics, and what each may say.

Owns its files. Does not own what is expected of its deployment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CODE: Final = '''"""Orders, and mails about them."""

from tenuto import Context, ObjectContext, Service, VirtualObject, aws

order = VirtualObject("order")
mail = Service("mail*%er")


@order.handler()
async def place(ctx: ObjectContext, what: str) -> str:
    await ctx.run("charge", lambda: None)
    return what


@mail.handler()
async def send(ctx: Context, text: str) -> None:
    print(text)


handler = aws.handler(order)
mailer = aws.handler(mail)
'''

CONFIGURATION: Final = """
[functions.order_intake]
handler = "shop.app:handler"
memory_mb = 256
policies = ["AmazonSQSFullAccess", "arn:aws:iam::111122223333:policy/mine"]

[functions.order_intake.environment]
QUEUE = { parameter = "QueueUrl" }
MODE = 'a "b" ${X} UserUpdates'

[functions.mailer]
handler = "shop.app:mailer"
timeout_s = 33

[[subscriptions]]
topic = "orders.v1"
target = "order/place"

[[subscriptions]]
topic = "orders"
target = "order/place"
start = "latest"
"""


def write_project(folder: Path, layout: str = "src") -> Path:
    """The project's files; `layout` is "src" or "flat"."""
    package = folder / ("src/shop" if layout == "src" else "shop")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    (package / "app.py").write_text(CODE, "utf-8")
    (folder / "tenuto.toml").write_text(CONFIGURATION, "utf-8")
    return folder
