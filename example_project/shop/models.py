from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models import F, Sum
from django.urls import reverse


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField(unique=True)

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    sku = models.CharField("SKU", max_length=20, unique=True)
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["sku"]

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    class Status(models.TextChoices):
        PLACED = "placed", "Placed"
        PACKED = "packed", "Packed"
        SHIPPED = "shipped", "Shipped"
        DELIVERED = "delivered", "Delivered"

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PLACED)
    tracking_number = models.CharField(max_length=40, blank=True)
    placed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Order {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("order", args=[self.pk])

    @property
    def next_status(self) -> str | None:
        following = self.Status.values.index(self.status) + 1
        return self.Status.values[following] if following < len(self.Status.values) else None


class OrderLineQuerySet(models.QuerySet["OrderLine"]):
    def amount(self) -> Decimal:
        total = self.aggregate(amount=Sum(F("quantity") * F("unit_price")))["amount"]
        return total or Decimal(0)


class OrderLine(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="lines")
    quantity = models.PositiveSmallIntegerField()
    unit_price = models.DecimalField(max_digits=8, decimal_places=2)

    objects = OrderLineQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["order", "product"], name="one_line_per_product"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product}"

    @property
    def amount(self) -> Decimal:
        return self.quantity * self.unit_price


class Offer(models.Model):
    """What a stall has to offer. Its tables are made by hand: each stall's own, and one with a policy."""

    stall = models.TextField()
    name = models.TextField()

    class Meta:
        abstract = True
        managed = False

    def __str__(self) -> str:
        return self.name


class SchemaOffer(Offer):
    class Meta(Offer.Meta):
        # Whose it is, "search_path" says.
        db_table = "offer"


class SharedOffer(Offer):
    pass
