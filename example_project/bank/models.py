from __future__ import annotations

from django.db import models


class Account(models.Model):
    balance = models.BigIntegerField()

    def __str__(self) -> str:
        return f"Account {self.pk}"


class Entry(models.Model):
    """A row of the ledger: what has been committed under which token."""

    # Not unique: what was done twice shall be found twice.
    token = models.UUIDField()
    source = models.ForeignKey(Account, null=True, on_delete=models.PROTECT, related_name="debits")
    target = models.ForeignKey(Account, null=True, on_delete=models.PROTECT, related_name="credits")
    amount = models.IntegerField(default=0)

    class Meta:
        verbose_name_plural = "entries"

    def __str__(self) -> str:
        return f"Entry {self.token}"
