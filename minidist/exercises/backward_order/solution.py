"""In which order a backward visits the graph: one right answer."""


def backward_order(root, parents):
    noted, seen, stack = [], {root}, [(root, iter(parents[root]))]
    while stack:
        name, left = stack[-1]
        for parent in left:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, iter(parents[parent])))
                break
        else:
            noted.append(name)
            stack.pop()
    return noted[::-1]
