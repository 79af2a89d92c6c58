fill
