"""Invites are withdrawn when their inviter is removed or demoted, and their number is limited."""

import asyncio
from uuid import UUID

import pytest

from models.organization import InviteStatus, InviteWithdrawn, Member, Role
from services.organization import invites
from services.organization.errors import InviteNotFound, NotAllowed, OrganizationNotFound, TooManyInvites
from tests.example.services.inviting import INVITE_LIFETIME, MAX_INVITES, invite, join
from tests.services.people import email, sign_up
from tests.world import World


async def statuses(domain: World, actor: UUID, organization: UUID) -> dict[str, InviteStatus]:
    found = await domain.organization.list_invites(actor, organization)
    return {each.email.partition("@")[0]: each.status for each in found}


async def owners(domain: World) -> tuple[UUID, UUID, UUID]:
    """Create an organization with two owners; return the ids of the organization and the owners."""
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.OWNER)
    return made.id, ada, bob


async def test_removed_owner_cannot_return_by_own_invite(domain: World) -> None:
    made, ada, bob = await owners(domain)
    token = await invite(domain, bob, made, "spare", Role.OWNER)
    await domain.organization.remove_member(ada, made, bob)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
    assert (await statuses(domain, ada, made))["spare"] is InviteStatus.WITHDRAWN


async def test_removed_member_cannot_return_by_second_invite_to_own_mailbox(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    tokens = [await invite(domain, ada, made.id, name, Role.ADMIN) for name in ("bob", "other")]
    await domain.organization.accept_invite(bob, tokens[1])
    await domain.organization.remove_member(ada, made.id, bob)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, tokens[0])


async def test_leaving_withdraws_own_invites(domain: World) -> None:
    made, ada, bob = await owners(domain)
    token = await invite(domain, bob, made, "cyd", Role.MEMBER)
    await domain.organization.remove_member(bob, made, bob)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(await sign_up(domain, "cyd"), token)
    assert (await statuses(domain, ada, made))["cyd"] is InviteStatus.WITHDRAWN


@pytest.mark.parametrize(
    ("role", "left"),
    [
        (Role.ADMIN, {"as-member", "as-admin"}),
        (Role.MEMBER, set[str]()),
        (Role.OWNER, {"as-member", "as-admin", "as-owner"}),
    ],
)
async def test_demotion_withdraws_invites_beyond_the_remaining_role(domain: World, role: Role, left: set[str]) -> None:
    made, ada, bob = await owners(domain)
    for each in Role:
        await invite(domain, bob, made, f"as-{each}", each)
    await domain.organization.change_role(ada, made, bob, role)
    found = await statuses(domain, ada, made)
    assert {name for name, status in found.items() if status is InviteStatus.PENDING} == left


async def test_invites_by_other_members_and_in_other_organizations_stay_open(domain: World) -> None:
    made, ada, bob = await owners(domain)
    elsewhere = await domain.organization.create(bob, "Looms")
    await invite(domain, ada, made, "hers", Role.OWNER)
    await invite(domain, bob, elsewhere.id, "his", Role.OWNER)
    await domain.organization.remove_member(ada, made, bob)
    assert (await statuses(domain, ada, made))["hers"] is InviteStatus.PENDING
    assert (await statuses(domain, bob, elsewhere.id))["his"] is InviteStatus.PENDING


async def test_invite_withdrawn_by_a_removal_is_journaled_and_never_expires(domain: World) -> None:
    made, ada, bob = await owners(domain)
    await invite(domain, bob, made, "spare", Role.OWNER)
    [invited] = [each for each in await domain.organization.list_invites(ada, made) if each.email == email("spare")]
    await domain.organization.remove_member(ada, made, bob)
    assert not await domain.kit.mq.cancel(invited.expiry_id), "the deadline was cancelled with the removal"
    await domain.kit.advance(seconds=INVITE_LIFETIME)
    entries = await domain.audit.list_entries(ada, made)
    assert [(each.event, each.actor_id) for each in entries[-2:]] == [("MemberLeft", ada), ("InviteWithdrawn", ada)]
    assert entries[-1].details["email"] == email("spare")


async def test_withdrawal_of_one_invite_is_journaled(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    await invite(domain, ada, made.id, "bob")
    [invited] = await domain.organization.list_invites(ada, made.id)
    await domain.organization.withdraw_invite(ada, made.id, invited.id)
    [event] = domain.kit.published(InviteWithdrawn)
    assert (event.actor_id, event.invite_id, event.email) == (ada, invited.id, email("bob"))


async def test_refused_removal_withdraws_nothing(domain: World) -> None:
    made, ada, bob = await owners(domain)
    await invite(domain, ada, made, "cyd", Role.OWNER)
    await domain.organization.change_role(bob, made, bob, Role.ADMIN)
    with pytest.raises(NotAllowed):
        await domain.organization.remove_member(bob, made, ada)
    assert (await statuses(domain, ada, made))["cyd"] is InviteStatus.PENDING


async def test_invite_left_open_by_an_earlier_release_is_not_accepted(domain: World) -> None:
    made, ada, bob = await owners(domain)
    token = await invite(domain, bob, made, "spare", Role.OWNER)
    async with domain.db.transaction() as tx:
        # An earlier release removed members without withdrawing their invites.
        await tx.session.delete(await tx.session.get_one(Member, (made, bob)))
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
    with pytest.raises(OrganizationNotFound):
        await domain.organization.get(bob, made)
    await domain.organization.get(ada, made)


async def test_invite_limit_counts_withdrawn_invites_of_each_user(domain: World) -> None:
    made, ada, bob = await owners(domain)
    for number in range(MAX_INVITES - 1):
        invited = await domain.organization.invite(ada, made, email=email(f"n{number}"))
        await domain.organization.withdraw_invite(ada, made, invited.id)
    with pytest.raises(TooManyInvites) as caught:
        await domain.organization.invite(ada, made, email=email("more"))
    assert 0 < caught.value.retry_after <= 3600
    await domain.organization.invite(bob, made, email=email("his"))


async def test_open_invites_of_one_user_to_one_organization_are_bounded(
    domain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invites, "MAX_OPEN", 3)
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    opened = [await domain.organization.invite(ada, made.id, email=email(f"n{number}")) for number in range(3)]
    with pytest.raises(TooManyInvites):
        await domain.organization.invite(ada, made.id, email=email("more"))
    await domain.organization.withdraw_invite(ada, made.id, opened[0].id)
    await domain.organization.invite(ada, made.id, email=email("more"))


@pytest.mark.parametrize("_round", range(5))
async def test_concurrent_acceptance_cannot_restore_a_removed_owner(domain: World, _round: int) -> None:
    made, ada, bob = await owners(domain)
    spare = await sign_up(domain, "spare")
    token = await invite(domain, bob, made, "spare", Role.OWNER)
    removing = domain.organization.remove_member(ada, made, bob)
    accepting = domain.organization.accept_invite(spare, token)
    pair = (removing, accepting) if _round % 2 else (accepting, removing)
    outcomes = await asyncio.gather(*pair, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, InviteNotFound)]
    members = {each.user_id for each in await domain.organization.list_members(ada, made)}
    assert bob not in members
    # In either order: accepted before the removal, or refused.
    assert (spare in members) is not bool(refused)
    with pytest.raises(InviteNotFound):
        await domain.organization.accept_invite(bob, token)
