from django.http import JsonResponse

from orders import services


def order(request, pk):
    return JsonResponse({"place": services.track(pk)})


async def order_async(request, pk):
    return JsonResponse({"place": await services.atrack(pk)})
