# SPDX-License-Identifier: Apache-2.0
# rosidl's targets export absolute include directories of Python and numpy, which are right only on the machine and in the
# environment of the build. That fails in two places, and this mends both once every target is known:
# - The ROS 2 wheels from PyPI bring targets that name directories of the machine that built them, and CMake refuses an
#   imported target with a directory that does not exist: such entries are dropped.
# - CMake refuses to export a directory below the source tree, which is where numpy lies if the virtual environment is
#   in the repository: absolute entries of our own targets are kept for this build and not exported.
function(localise_includes)
  get_directory_property(imported IMPORTED_TARGETS)
  get_directory_property(built BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS imported built)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(kept "")
    foreach(directory IN LISTS directories)
      if(target IN_LIST built AND IS_ABSOLUTE "${directory}")
        list(APPEND kept "$<BUILD_INTERFACE:${directory}>")
      elseif(NOT IS_ABSOLUTE "${directory}" OR EXISTS "${directory}")
        list(APPEND kept "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
  endforeach()
endfunction()

cmake_language(DEFER CALL localise_includes)
