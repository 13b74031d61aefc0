"""Tests of mails and of their failures."""

from infra.mail import MailRejected, MailUnavailable
from models.organization import Organization
from tests.services.people import email, sign_up
from tests.world import World


async def test_temporary_mail_failure_is_retried(domain: World) -> None:
    domain.mail.failures["Welcome"] = [MailUnavailable("450 later")] * 3
    await sign_up(domain, "ada")
    await domain.kit.advance(minutes=5)
    assert [mail.subject for mail in domain.mail.to(email("ada"))].count("Welcome") == 1
    assert [each.listener for each in domain.kit.failures] == ["notification.send_welcome_email"] * 3


async def test_permanent_mail_failure_is_discarded_at_once(domain: World) -> None:
    domain.mail.failures["Welcome"] = [MailRejected("550 no such mailbox")]
    await sign_up(domain, "ada")
    await domain.kit.advance(minutes=5)
    assert "Welcome" not in [mail.subject for mail in domain.mail.sent]
    assert await domain.kit.dead_letters() == []


async def test_mail_that_always_fails_becomes_a_dead_letter(domain: World) -> None:
    domain.mail.failures["Welcome"] = [MailUnavailable("450 later")] * 8
    await sign_up(domain, "ada")
    await domain.kit.advance(minutes=10)
    assert [each.outcome for each in domain.kit.failures] == ["retry"] * 7 + ["dead"]
    assert [letter.subscription for letter in await domain.kit.dead_letters()] == ["notification.send_welcome_email"]


async def test_line_break_in_an_organization_name_is_removed_from_the_subject(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    async with domain.db.transaction() as tx:
        # An earlier release accepted such names.
        stored = await tx.session.get_one(Organization, made.id)
        stored.name = "Engines\u2028Bcc: eve@example.com\r\n\r\nHello"
    await domain.organization.invite(ada, made.id, email=email("bob"))
    await domain.kit.drain()
    assert [mail.subject for mail in domain.mail.to(email("bob"))] == ["Join Engines Bcc: eve@example.com Hello"]
