"""Tests of invites: mail, acceptance, expiry and withdrawal."""

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from infra.mail import MailUnavailable
from models.organization import InviteDeadlineReached, InviteExpired, InviteStatus, MemberJoined, Role
from services.organization.errors import AlreadyInvited, AlreadyMember, InviteNotFound
from tests.example.services.inviting import INVITE_LIFETIME, invite, join, newest_token
from tests.services.people import email, sign_up
from tests.world import World


async def statuses(domain: World, actor: UUID, organization: UUID) -> list[InviteStatus]:
    return [each.status for each in await domain.organization.list_invites(actor, organization)]


async def lose_deadline(domain: World, actor: UUID, organization: UUID) -> None:
    """Remove the deadline of the only invite from the queue, as a flush of the queue would."""
    [invited] = await domain.organization.list_invites(actor, organization)
    assert await domain.kit.mq.cancel(invited.expiry_id)


async def test_invite_can_be_accepted_with_the_mailed_token(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob", Role.ADMIN)
    assert "Join Engines" in [mail.subject for mail in domain.mail.to(email("bob"))]
    assert (await domain.organization.accept_invite(bob, token)).id == made.id
    members = await domain.organization.list_members(bob, made.id)
    assert {member.name: member.role for member in members} == {"ada": Role.OWNER, "bob": Role.ADMIN}
    assert [event.actor_id for event in domain.kit.published(MemberJoined)] == [bob]


async def test_an_accepted_invite_never_expires(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.MEMBER)
    await domain.kit.advance(minutes=30)
    entries = await domain.audit.list_entries(ada, made.id)
    assert "InviteExpired" not in {each.event for each in entries}
    assert await statuses(domain, ada, made.id) == [InviteStatus.ACCEPTED]


async def test_an_unanswered_invite_expires_in_time(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    await domain.kit.advance(seconds=INVITE_LIFETIME - 1)
    assert await statuses(domain, ada, made.id) == [InviteStatus.PENDING]
    await domain.kit.advance(seconds=1)
    assert await statuses(domain, ada, made.id) == [InviteStatus.EXPIRED]
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
    assert [each.event for each in await domain.audit.list_entries(ada, made.id)][-1] == "InviteExpired"
    assert len(domain.kit.published(InviteExpired)) == 1


async def test_expired_invite_is_refused_before_its_deadline_is_delivered(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    domain.kit.clock.move_to(domain.kit.clock.time() + INVITE_LIFETIME)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)


async def test_invite_is_accepted_although_the_queue_lost_its_deadline(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    await lose_deadline(domain, ada, made.id)
    await domain.organization.accept_invite(bob, token)
    assert await statuses(domain, ada, made.id) == [InviteStatus.ACCEPTED]


async def test_invite_expires_although_the_queue_lost_its_deadline(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    await lose_deadline(domain, ada, made.id)
    await domain.kit.advance(seconds=INVITE_LIFETIME)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
    await domain.organization.invite(ada, made.id, email=email("bob"))


async def test_deadline_after_the_acceptance_publishes_no_expiry(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.MEMBER)
    [accepted] = await domain.organization.list_invites(ada, made.id)
    await domain.kit.bus.publish(InviteDeadlineReached(invite_id=accepted.id))
    await domain.kit.drain()
    assert await statuses(domain, ada, made.id) == [InviteStatus.ACCEPTED]
    assert domain.kit.published(InviteExpired) == []


async def test_repeated_or_early_deadline_expires_an_invite_once(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    [invited] = await domain.organization.list_invites(ada, made.id)
    for _ in range(2):
        await domain.kit.bus.publish(InviteDeadlineReached(invite_id=invited.id))
    await domain.kit.drain()
    assert len(domain.kit.published(InviteExpired)) == 1
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)


async def test_token_is_accepted_once(domain: World) -> None:
    ada, bob, eve = await sign_up(domain, "ada"), await sign_up(domain, "bob"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    await domain.organization.accept_invite(bob, token)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(eve, token)


async def test_only_one_concurrent_acceptance_succeeds(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    others = [await sign_up(domain, f"user{number}") for number in range(4)]
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    tries = [domain.organization.accept_invite(other, token) for other in others]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, InviteNotFound) for each in outcomes) == 3
    assert len(await domain.organization.list_members(ada, made.id)) == 2


async def test_wrong_invite_token_is_refused(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    await invite(domain, ada, (await domain.organization.list_organizations(ada))[0].id, "bob")
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(ada, "x" * 43)


async def test_member_can_neither_be_invited_nor_accept_again(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "someone")
    with pytest.raises(AlreadyMember):
        await domain.organization.accept_invite(ada, token)
    await join(domain, ada, made.id, bob, Role.MEMBER)
    with pytest.raises(AlreadyMember):
        await domain.organization.invite(ada, made.id, email="BOB@example.com")


async def test_email_address_has_at_most_one_open_invite(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    tries = [domain.organization.invite(ada, made.id, email=each) for each in ("bob@example.com", "Bob@example.com")]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["AlreadyInvited", "Invite"]
    await domain.kit.advance(seconds=INVITE_LIFETIME)
    await domain.organization.invite(ada, made.id, email="bob@example.com")
    with pytest.raises(AlreadyInvited):
        await domain.organization.invite(ada, made.id, email="bob@example.com")


async def test_withdrawn_invite_cannot_be_accepted_and_never_expires(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    token = await invite(domain, ada, made.id, "bob")
    invited = (await domain.organization.list_invites(ada, made.id))[0]
    await domain.organization.withdraw_invite(ada, made.id, invited.id)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
    with pytest.raises(InviteNotFound):
        await domain.organization.withdraw_invite(ada, made.id, invited.id)
    await domain.kit.advance(minutes=30)
    assert await statuses(domain, ada, made.id) == [InviteStatus.WITHDRAWN]


async def test_an_invite_is_withdrawn_only_from_its_own_organization(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    await invite(domain, ada, made.id, "bob")
    invited = (await domain.organization.list_invites(ada, made.id))[0]
    hers = (await domain.organization.list_organizations(eve))[0]
    for absent in (invited.id, uuid7()):
        with pytest.raises(InviteNotFound):
            await domain.organization.withdraw_invite(eve, hers.id, absent)


async def test_retried_invite_mail_contains_a_valid_token(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    await domain.kit.drain()
    made = await domain.organization.create(ada, "Engines")
    domain.mail.failures["Join Engines"] = [MailUnavailable("450 come back later")]
    await domain.organization.invite(ada, made.id, email=email("bob"))
    await domain.kit.advance(minutes=5)
    assert [each.outcome for each in domain.kit.failures] == ["retry"]
    mails = domain.mail.to(email("bob"))
    assert [mail.subject for mail in mails].count("Join Engines") == 1
    assert (await domain.organization.accept_invite(bob, newest_token(mails))).id == made.id


async def test_withdrawn_invite_is_not_mailed(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    await domain.kit.drain()
    made = await domain.organization.create(ada, "Engines")
    invited = await domain.organization.invite(ada, made.id, email=email("bob"))
    await domain.organization.withdraw_invite(ada, made.id, invited.id)
    await domain.kit.drain()
    assert domain.mail.to(email("bob")) == []
    assert await domain.kit.dead_letters() == []
