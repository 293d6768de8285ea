"""What the browser tests look at: the scene, and how a person logs in."""

from playwright.sync_api import Page

from appliance.demo.scene import Scene

SCENE = Scene(image="debian-desktop", template="office", memory_mib=512, standby=1, maximum=3)


def log_in(page: Page, portal: str, user: str, password: str) -> None:
    """Log in by the form, as people do."""
    page.goto(f"https://{portal}/")
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Log in").click()
